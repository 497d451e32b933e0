package main

import "fmt"

// maxTypos is the number of typing errors up to which a word is taken for another one.
const maxTypos = 2

// didYouMean returns a question about the word of all that was probably meant, or "".
func didYouMean(word, dashes string, all []string) string {
	best, typos := "", min(maxTypos, len(word)/2)+1
	for _, name := range all {
		if max(len(word)-len(name), len(name)-len(word)) >= typos {
			continue // the distance is at least this; a word may be very long
		}
		if n := distance(word, name); n < typos {
			best, typos = name, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s%s?", dashes, best)
}

// distance returns how many letters must be inserted, removed, replaced or swapped with the next
// one to make one word of the other (optimal string alignment).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
