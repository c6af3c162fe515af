"""ASAP: finds manipulated faces and words in image-text pairs. Knows torch, never imports ray."""
