"""The figures of what sessions did: counted, told as a table, drawn as a picture."""
