"""The `site.toml` that `site init` writes: every line explained, for a hospital to read through."""

TEMPLATE = """\
# This site's own settings. The file never leaves this machine. Paths are relative to it.

# The site's name and the server, as agreed with the study's coordinator.
{name}
{server}

# Whom this site trusts as the server; 'consilium site accept' writes it.
ca_certificate = "ca.pem"

# This site's private key. Nobody ever needs it but this machine; the coordinator gets site.csr.
private_key = "site.key"

# This site's certificate and the key that orders are signed with; 'consilium site accept' writes both.
certificate = "site.pem"
study_key = "study.pub"

# Personal models and the log of what was answered. Back this folder up together with the key.
state_dir = "state"

# Put weights files that a study asks for here.
weights_dir = "weights"

# Training: "auto" takes a GPU where there is one; how many processor threads it may use.
device = "auto"
threads = 1

# What the coordinator may see beyond the necessary: examples per class; count, sum and sum of squares per number column
# or image channel, for one scale of all sites; whole error sentences (may hold file names).
share_class_counts = false
share_scale = true
share_error_details = false

# Studies of masks: whether a few test pictures with outlines leave for the report. They are pictures of patients.
share_overlays = false

# Whether the accepted study may later be run with other values inside the ranges that it came with ('site accept' and
# 'site check' say which). false: exactly as accepted; or only some of them: {{ rounds = "<= 20" }}.
accept_ranges = true

# Metrics for Prometheus, e.g. "127.0.0.1:9095".
{metrics}

[data]
# "images": a folder with one sub-folder per class. "table": a .csv, .xlsx or .parquet file or a folder of them.
# "arrays": an .npz file with images x and class numbers y, or a folder with one. "masks": pictures in a folder images,
# their masks in a folder masks. "features" and "series": an .npz file of numbers. "text": a table or .txt files.
{kind}
{path}

# How many unusable files or rows may be left out.
max_skipped = 0
"""
