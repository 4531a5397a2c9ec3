"""What the programs need of the machine: files, processes, keys, pages, logs."""
