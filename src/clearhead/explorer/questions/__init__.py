"""Every question that can be asked of an exploration, in one table.

A question is a function of its own in `describing.py`, `maps.py` and their neighbors; the table says how it is called
and which values its parameters may have.
"""

from clearhead.explorer.questions import describing, heads, maps
from clearhead.explorer.table import Question

QUESTIONS: dict[str, Question] = {
    question.name: question for question in (*describing.QUESTIONS, *maps.QUESTIONS, *heads.QUESTIONS)
}
