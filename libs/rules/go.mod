module github.com/sluicesync/sluice/libs/rules

go 1.26.0
