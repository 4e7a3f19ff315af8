"""The table of questions as an OpenAPI 3.1 description, which tests drive random requests from."""

from collections.abc import Mapping
from typing import Any

from clearhead import __version__
from clearhead.explorer.table import Question

ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
    "additionalProperties": False,
}
REFUSALS = {
    "400": "a parameter is not what is expected, or there is nothing to answer",
    "401": "the token is missing or wrong",
    "403": "the request comes from another site",
    "405": "the question is asked with another method",
    "413": "the request is too large",
    "415": "the body is of another kind than expected",
    "421": "the Host is not ours",
    "429": "too much at once",
}


def describe(questions: Mapping[tuple[str, str], Question]) -> dict[str, Any]:
    """Return the description of a table of questions."""
    paths: dict[str, Any] = {}
    for question in questions.values():
        paths.setdefault(f"/api/{question.name}", {})[question.method.lower()] = _operation(question)
    return {
        "openapi": "3.1.0",
        "info": {"title": "clearhead explore", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def _operation(question: Question) -> dict[str, Any]:
    """Return one question as an operation."""
    found: dict[str, Any] = {
        "operationId": f"{question.method.lower()}_{question.name}",
        "summary": question.says,
        "responses": {"200": _success(question), **{status: _refusal(says) for status, says in REFUSALS.items()}},
    }
    if question.method == "GET":
        found["parameters"] = [
            {
                "name": name,
                "in": "query",
                "required": parameter.required,
                "description": parameter.says,
                "schema": parameter.schema(),
            }
            for name, parameter in question.parameters.items()
        ]
    elif question.method == "POST":
        schema = {
            "type": "object",
            "properties": {name: parameter.schema() for name, parameter in question.parameters.items()},
            "required": [name for name, parameter in question.parameters.items() if parameter.required],
            "additionalProperties": False,
        }
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    else:
        binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        found["requestBody"] = {"required": True, "content": binary}
    return found


def _success(question: Question) -> dict[str, Any]:
    """Return what a question is answered with."""
    if question.method == "POST":
        says = "events, one JSON object a line, the last of which is done or error"
        return {"description": says, "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
    if question.gives == "json":
        return {"description": "the answer", "content": {"application/json": {"schema": {"type": "object"}}}}
    binary = {"schema": {"type": "string", "format": "binary"}}
    kinds = ("image/png", "image/jpeg") if question.name == "image" else ("application/octet-stream",)
    return {
        "description": "bytes, and a small JSON object in the header X-Meta",
        "headers": {"X-Meta": {"schema": {"type": "string"}}},
        "content": dict.fromkeys(kinds, binary),
    }


def _refusal(says: str) -> dict[str, Any]:
    return {"description": says, "content": {"application/json": {"schema": ERROR}}}
