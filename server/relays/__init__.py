"""Relays: at the server what reaches sites through them, and in a relay what asks its sites and adds up."""
