# Reads the output of "go test -v" and prints that of "go test": one line for a package
# that passed, everything for one that failed. At the end it prints the slowest tests, the
# skipped ones with the reason, because a run that skips tests also passes, and again what
# the failed ones said, without the logs of the processes in between.

function flush_package() {
	for (i = 1; i <= lines; i++)
		print line[i]
	lines = 0
}

{ line[++lines] = $0 }

/^=== (RUN|NAME|CONT) / { test = $3 }

# "    file_test.go:12: reason", the last one before the verdict
/^ +[A-Za-z0-9_]+_test\.go:[0-9]+: / {
	reason[test] = $0
	sub(/^ +[^ ]+ /, "", reason[test])
	if (++said[test] <= 40)
		text[test] = text[test] substr($0, 1, 300) "\n"
}

/^ *--- SKIP: / {
	skips++
	skip[skips] = $3
	why[skips] = ($3 in reason) ? reason[$3] : "no reason given"
	first_of_package = first_of_package ? first_of_package : skips
}
/^ *--- PASS: / { passed++ }
/^ *--- FAIL: / {
	failed++
	if ($3 in text)
		failures = failures $3 "\n" text[$3]
}

# The time of a test with parallel subtests does not count theirs, so the innermost
# ones are listed: a test comes before its subtests.
/^ *--- (PASS|FAIL): / {
	outer = $3
	if (sub(/\/[^\/]*$/, "", outer))
		has_subtests[outer] = 1
	took[$3] = substr($4, 2) + 0
}

# note_slow(pkg) keeps the slowest tests so far, the slowest first.
function note_slow(pkg,    t, i) {
	for (t in took) {
		if (t in has_subtests)
			continue
		for (i = slowest < 10 ? ++slowest : 10; i > 1 && slow[i - 1] < took[t]; i--) {
			slow[i] = slow[i - 1]
			slow_name[i] = slow_name[i - 1]
		}
		if (slow[i] <= took[t]) {
			slow[i] = took[t]
			slow_name[i] = pkg " " t
		}
	}
	split("", took)
	split("", has_subtests)
}

# The last line of a package.
/^(ok  |FAIL|\?   )\t/ {
	for (; first_of_package && first_of_package <= skips; first_of_package++)
		package[first_of_package] = $2
	first_of_package = 0
	split("", reason)
	split("", said)
	split("", text)
	note_slow($2)
	if ($1 == "FAIL") {
		flush_package()
		bad[++bads] = $2
	} else if ($1 != "?")
		print
	lines = 0
	fflush()
}

END {
	# Output of no package; the last "FAIL" repeats the lines above.
	if (lines > 1 || (lines == 1 && line[1] != "FAIL"))
		flush_package()
	if (slowest)
		print "\nThe slowest tests:"
	for (i = 1; i <= slowest; i++)
		printf "%8.2f s  %s\n", slow[i], slow_name[i]
	if (skips)
		print ""
	for (i = 1; i <= skips; i++)
		printf "SKIPPED %s %s: %s\n", package[i], skip[i], why[i]
	if (bads)
		print ""
	printf "%s", failures
	for (i = 1; i <= bads; i++)
		print "FAILED " bad[i]
	printf "\n%d tests passed, %d failed, %d skipped\n", passed, failed, skips
}
