// Package script follows the README as a user does: commands typed against a
// real node, from a folder and a home of their own.
package script
