"""One file per wire dialect; each only translates its callers' words to `Service.edit` and back."""
