module github.com/sluicesync/sluice/services/rules-evaluator

go 1.26.0
