package invoke
