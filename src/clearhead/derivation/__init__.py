"""Attention derived in eight steps, with the numbers of a real sentence, for any word, head and layer.

    from clearhead.derivation import derive

    derivation = derive(attention, x, words, query=5, head=3)
    for step in derivation.steps:
        print(step.equation, step.sentence, step.tensors, step.source, sep="\\n")

Read `steps.py`: it is the derivation, eight functions of a few lines. `account.py` calls them in order and keeps what
they return, `sentences.py` says it in words, `words.py` finds a word among the pieces of a tokenizer.
Next: `block.py` puts the layer in its place.
"""

from clearhead.derivation.account import Derivation, Source, Step, derive
from clearhead.derivation.words import find_word

__all__ = ["Derivation", "Source", "Step", "derive", "find_word"]
