package gateway

import (
	"fmt"
	"net/http"
	"strings"

	"lode"
)

// lambdaName is a function as AWS's API names it.
type lambdaName struct {
	name  lode.Name
	alias string // alias or revision number; "": live
}

// parseLambdaName reads the name in a path and the parameter Qualifier. The
// forms of the name are
//
//	name[:qualifier]
//	account:function:name[:qualifier]
//	arn:partition:lambda:region:account:function:name[:qualifier]
//
// of which region and account may be anything: there is one Lode here.
func parseLambdaName(raw, qualifier string) (lambdaName, error) {
	parts := strings.Split(raw, ":")
	switch {
	case len(parts) >= 7 && parts[0] == "arn" && parts[2] == "lambda" && parts[5] == "function":
		parts = parts[6:]
	case len(parts) >= 3 && parts[1] == "function" && accountID(parts[0]):
		parts = parts[2:]
	}
	if len(parts) > 2 || !awsWord(parts[0], 64) || len(parts) == 2 && !awsQualifier(parts[1]) || qualifier != "" && !awsQualifier(qualifier) {
		return lambdaName{}, &lambdaError{http.StatusBadRequest, "ValidationException", lode.Invalid,
			fmt.Sprintf("1 validation error detected: Value '%.200s' at 'functionName' is not a function name, a partial ARN or an ARN", raw)}
	}
	if len(parts) == 2 {
		if qualifier != "" && qualifier != parts[1] {
			return lambdaName{}, invalidParameter("The derived qualifier from the function name does not match the specified qualifier.")
		}
		qualifier = parts[1]
	}
	if qualifier == "$LATEST" {
		qualifier = ""
	}
	name, err := lode.ParseName(parts[0])
	if err != nil { // AWS's names may be longer and have capitals; ours are never that
		return lambdaName{}, &lambdaError{http.StatusNotFound, "ResourceNotFoundException", lode.NotFound,
			fmt.Sprintf("Function not found: %s (names here are lower case: [a-z][a-z0-9-]{0,47})", parts[0])}
	}
	return lambdaName{name, qualifier}, nil
}

// accountID is 12 digits.
func accountID(s string) bool {
	return len(s) == 12 && strings.Trim(s, "0123456789") == ""
}

func awsQualifier(s string) bool { return s == "$LATEST" || awsWord(s, 128) }

// awsWord is 1 to max letters, digits, hyphens and underscores.
func awsWord(s string, max int) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if !(c >= 'a' && c <= 'z' || s[i] >= '0' && s[i] <= '9' || s[i] == '-' || s[i] == '_') {
			return false
		}
	}
	return len(s) > 0 && len(s) <= max
}
