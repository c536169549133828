"""Policies for stacks of GitLab runners: pure rules, and how Pulumi gets them."""
