"""openapi.yaml as what answers are held against."""
import jsonschema_rs
import yaml

from daemon import ROOT

FILE = ROOT / "openapi.yaml"


class Strict(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; others refuse the file."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{sorted(twice)} twice, line {node.start_mark.line + 1}"
        return super().construct_mapping(node, deep)


DOCUMENT = yaml.load(FILE.read_text(), Strict)


def validator(schema):
    """Of a schema of the document, whose references lead back into it."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def check(name, value):
    """Raises unless the value is what components/schemas/NAME says."""
    validator({"$ref": f"#/components/schemas/{name}"}).validate(value)


def is_valid(name, value):
    return validator({"$ref": f"#/components/schemas/{name}"}).is_valid(value)


def check_error(answer, status, param=..., code=None):
    """The answer is an error in OpenAI's shape, and says what it should."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]
    check("Error", answer.json())
    error = answer.error
    expected = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    assert error["type"] == expected, error
    if param is not ...:
        assert error["param"] == param, error
    if code:
        assert error["code"] == code, error
    return error
