"""Scenario: a supply story as files, and the answers of the planner to its questions.

`file` holds the nouns of a scenario folder, `change` what a question changes of fleet and offers,
`study` asks the planner, `text` and `page` tell the answers.
"""
