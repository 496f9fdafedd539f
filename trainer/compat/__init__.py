"""One module per library whose private or changing interfaces the trainer needs; each names the versions it ran with.

Importing this package, and so any of its modules, makes torchvision importable: see trainer.compat.torchvision. Every
module that imports open_clip, peft or transformers imports from here first.
"""

from trainer.compat.torchvision import declare_operators

declare_operators()
