"""Pages for people: the chat of a served model, beside the curve and the plan of its run."""
