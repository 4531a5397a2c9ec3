"""A relay: towards a study's server it is like a site, towards its own sites, its leaves, it is like a server."""
