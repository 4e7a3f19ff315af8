"""Every question that can be asked of an exploration, in one table.

A question is a function of its own in `describing.py`, `maps.py` and their neighbors; the table says how it is called
and which values its parameters may have.
"""

from clearhead.explorer.questions import describing, exact, heads, lesson, maps, running, why
from clearhead.explorer.table import Question

# By method and name: GET is answered at once, POST streams events, PUT takes bytes.
QUESTIONS: dict[tuple[str, str], Question] = {
    (question.method, question.name): question
    for room in (describing, maps, heads, why, lesson, running, exact)
    for question in room.QUESTIONS
}
