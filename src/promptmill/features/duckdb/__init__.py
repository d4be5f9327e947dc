"""DuckDB: tables of its databases as inputs and outputs, and rows from queries over files, URLs and databases."""

from promptmill.core.feature import Feature, Format

FEATURE = Feature(
    query="promptmill.features.duckdb.query:queried",
    words="databases of DuckDB, and its queries over files and URLs as rows",
    formats=(
        Format(
            names=(".duckdb",),
            rows="cells",
            read_as="sql",
            database="promptmill.features.duckdb.duckdb_tables:DuckDb",
            packages=("duckdb", "pyarrow"),
            extra="duckdb",
            title="Queries of DuckDB and its",
            words="a row of a table, or of a query (`sql`)",
        ),
    ),
)
