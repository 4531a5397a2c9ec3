"""Several labels of one example: how well each is ranked, in draws of the patients."""
