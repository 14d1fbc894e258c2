"""Checks a running agent against its OpenAPI document with schemathesis, which generates valid and invalid requests."""
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
DOCUMENT = HERE.parent.parent / "src" / "api" / "agent" / "openapi.json"


def adapted(document):
    """The document for schemathesis: requests are signed by a hook, so signatures are not generated; a change that waits for its
    confirmation would block all later ones, so `confirm_within` is left out."""
    document["components"]["securitySchemes"] = {"signature": {"type": "http", "scheme": "signature"}}
    for methods in document["paths"].values():
        for call in methods.values():
            call["security"] = [{"signature": []}] if call["security"] else []
    for schema in document["components"]["schemas"].values():
        if "$ref" not in schema and "status" not in schema.get("properties", {}):
            schema.get("properties", {}).pop("confirm_within", None)
    return document


def check(node, schemathesis):
    served = node.panel.ask("GET", "/v1/openapi.json")
    if served.json != json.loads(DOCUMENT.read_text()):
        raise AssertionError("the served document differs from src/api/agent/openapi.json")
    document = node.write("openapi.json", json.dumps(adapted(served.json)))
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(HERE), "AGENT_FILE": str(node.dir / "secret"),
                   "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(node.dir)}
    # A fixed seed makes a run repeatable.
    command = [schemathesis, "--config-file", str(HERE / "schemathesis.toml"), "run", str(document), "--url", "http://127.0.0.1:8081",
               "--max-examples", os.environ.get("SPOKE_TEST_EXAMPLES", "25"), "--seed", os.environ.get("SPOKE_TEST_SEED", "1")]
    done = subprocess.run(command, cwd=node.dir, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print("\n".join("  " + line for line in done.stdout.splitlines()[-45 if done.returncode == 0 else -400:]))
    sys.stdout.flush()
    if done.returncode != 0:
        raise AssertionError(f"schemathesis exited with {done.returncode}")
    if not node.status().get("clean"):
        raise AssertionError("the node is not clean afterwards")
