"""Holds a live agent to its OpenAPI document with schemathesis, which makes up requests, good ones and bad ones."""
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
DOCUMENT = HERE.parent.parent / "src" / "agent" / "openapi.json"


def told(document):
    """The document as schemathesis is told it: signatures are put on what it made up, and cannot be made up themselves; a
    change that awaits its confirmation would keep all later ones out."""
    document["components"]["securitySchemes"] = {"signature": {"type": "http", "scheme": "signature"}}
    for methods in document["paths"].values():
        for call in methods.values():
            call["security"] = [{"signature": []}] if call["security"] else []
    for schema in document["components"]["schemas"].values():
        if "$ref" not in schema and "status" not in schema.get("properties", {}):
            schema.get("properties", {}).pop("confirm_within", None)
    return document


def hold(node, schemathesis):
    served = node.panel.ask("GET", "/v1/openapi.json")
    if served.json != json.loads(DOCUMENT.read_text()):
        raise AssertionError("another document is served")
    document = node.write("openapi.json", json.dumps(told(served.json)))
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(HERE), "AGENT_FILE": str(node.dir / "secret"),
                   "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(node.dir)}
    # Without new examples of its own choice a run is repeatable; a longer look: SPOKE_TEST_EXAMPLES.
    command = [schemathesis, "--config-file", str(HERE / "schemathesis.toml"), "run", str(document), "--url", "http://127.0.0.1:8081",
               "--max-examples", os.environ.get("SPOKE_TEST_EXAMPLES", "25"), "--seed", os.environ.get("SPOKE_TEST_SEED", "1")]
    done = subprocess.run(command, cwd=node.dir, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print("\n".join("  " + line for line in done.stdout.splitlines()[-45 if done.returncode == 0 else -400:]))
    sys.stdout.flush()
    if done.returncode != 0:
        raise AssertionError(f"schemathesis ended with {done.returncode}")
    if not node.status().get("clean"):
        raise AssertionError("the node is not well afterwards")
