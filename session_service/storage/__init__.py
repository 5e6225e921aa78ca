"""PostgreSQL: the pool, the tables, the migrations, and one module of queries per subject. Every
statement is written out with SQLAlchemy Core or as SQL text, and is atomic or runs in an explicit
transaction. Nothing here calls the provider.
"""
