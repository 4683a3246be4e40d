package config

import "strings"

// Nearest returns the candidate that text is most likely a misspelling of, or
// "" if none is near.
func Nearest(text string, candidates []string) string {
	best, found := 1+len(text)/3, ""
	for _, c := range candidates {
		if d := distance(strings.ToLower(text), strings.ToLower(c)); d < best || d == best && found == "" && d > 0 {
			best, found = d, c
		}
	}
	return found
}

// distance is the number of inserted, deleted, replaced and transposed bytes.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 1 << 20
	}
	var before, previous, current [65]int
	for j := range len(b) + 1 {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		current[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			current[j] = min(previous[j]+1, current[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				current[j] = min(current[j], before[j-2]+1)
			}
		}
		before, previous = previous, current
	}
	return previous[len(b)]
}
