"""Adopting what an older platform left: rows of its session table become sessions of Roost."""
