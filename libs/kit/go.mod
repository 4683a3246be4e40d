module github.com/sluicesync/sluice/libs/kit

go 1.26.0
