"""One module per library whose private or moving interfaces the trainer needs; each names the versions it ran with."""
