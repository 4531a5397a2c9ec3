"""JSON Schema of `study.toml` and `site.toml` for editors, and the texts under the fields of settings."""
