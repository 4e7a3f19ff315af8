"""Tests of training, which share the tiny BERT of conftest.py."""
