"""Planning: which model, on which chips, laid out how, done when. Needs no torch."""
