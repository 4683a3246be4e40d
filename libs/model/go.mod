module github.com/sluicesync/sluice/libs/model

go 1.26.0
