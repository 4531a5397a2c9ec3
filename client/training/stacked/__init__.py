"""Local training of many sites as one stack: the same steps on the same examples, each operation once for all."""
