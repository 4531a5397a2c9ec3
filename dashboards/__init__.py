"""Grafana's dashboards: source, the JSON made of it, and pictures of them without Grafana."""
