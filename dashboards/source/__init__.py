"""The Grafana dashboards as Python, one module each; `build.py` writes them as JSON."""
