"""Mail from files into the store: mbox (with Gmail Takeout), Maildir, folders of .eml, JSONL."""

from store.importers.load import FORMATS, import_mailbox

__all__ = ["FORMATS", "import_mailbox"]
