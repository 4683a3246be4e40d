module github.com/sluicesync/sluice/tools/arrows

go 1.26.0
