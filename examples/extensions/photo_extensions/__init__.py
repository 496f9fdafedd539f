"""Extensions of dsvl: objects that its configuration names, in a package of their own."""
