"""The mathematics of privacy that the server and the sites share."""
