"""What a change does to the stacks, as one comment on its merge request or pull request."""
