package main

import (
	"testing"

	"gitlab-runners/plugins/facts"
)

func TestItHasThePropertiesOfTheOfficialPlugin(t *testing.T) {
	facts.Compare(t, provider())
}
