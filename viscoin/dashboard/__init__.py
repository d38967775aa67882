"""The pages that the service delivers: Jinja templates, one style sheet, plain JavaScript modules; no build step."""
