"""The beginning of a program for a process that cannot import `seedling_hf`, as where it is not installed."""

WITHOUT_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "seedling_hf":
            raise ModuleNotFoundError("No module named 'seedling_hf'", name=name)

sys.meta_path.insert(0, Blocker())
"""
