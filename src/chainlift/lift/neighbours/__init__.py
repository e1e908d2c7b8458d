"""Who else stands on, holds or relies on a file: asked before anything is changed or deleted."""
