"""Backups: chunks, manifests, snapshots, shipped changes, retention, restore, proof, and where they are kept."""
