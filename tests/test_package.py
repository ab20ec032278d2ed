"""What the package exports, and what importing it loads."""

import subprocess
import sys

import zeroline as zl


def test_exports_are_sorted_and_exist():
    pinned = (
        "METHODS ROUTES Attribution BaselineAudit Comparison Corrections DualEncoder ErrorBudget Grounding Guest Guidance LabelledSet Logic "
        "Mechanism Player Principles Relevance Rewriting Robustness Run Summary attention_eclip attention_relevance attention_transfer audit_baseline baseline capture "
        "check_principles compare contrast corrections deletion_insertion difference_map error_budget errors explain grad_cam "
        "grad_eclip gradient_x_input ground guide integrated_attention integrated_gradients layer_cam layers load logic logit mechanism odam open_run players "
        "replaced rewrite robustness rollout run similarity site sites summarize target taylor top trace write_report zoo"
    )
    assert zl.__all__ == pinned.split()
    assert all(getattr(zl, name) is not None for name in zl.__all__)


def test_importing_zeroline_loads_torch_and_the_standard_library_only():
    code = """
import sys, torch
before = set(sys.modules)
import zeroline
new = {name.partition(".")[0] for name in set(sys.modules) - before} - {"zeroline", "torch"}
print(sorted(new - sys.stdlib_module_names))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"


def test_the_version_is_one():
    from importlib.metadata import version

    assert version("zeroline") == zl.__version__
