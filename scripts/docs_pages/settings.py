"""The settings, from `Settings`."""

from app.settings import Settings
from scripts.docs_pages.tables import default, required, table, values


def settings() -> str:
    """A row for each setting."""
    schema = Settings.model_json_schema(by_alias=False)
    rows = []
    for name, field in schema["properties"].items():
        description = required(field.get("description"), f"The field '{name}' of Settings in app/settings.py")
        kind = values(field, schema.get("$defs", {}))
        rows.append((f"`IMG2IMG_{name.upper()}`", kind, default(field.get("default")), description))
    return table(("variable", "values", "default", "meaning"), rows)
