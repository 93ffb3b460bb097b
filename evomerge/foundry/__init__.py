"""Tiny trained experts: a base model and fine-tunes of it that can really do something, with lm-eval tasks.

One expert adds, one sorts, one reverses, all in language E; one has general skills in language J. Adding,
sorting and reversing in J is what nobody was trained for and what a good merge can do. Importing this
package loads no torch: models are trained in processes of their own.
"""

from evomerge.foundry.builder import Foundry, build
from evomerge.foundry.errors import FoundryError
from evomerge.foundry.settings import FoundrySettings
from evomerge.foundry.tasks import task_names, write_tasks

__all__ = ["Foundry", "FoundryError", "FoundrySettings", "build", "task_names", "write_tasks"]
