package source

var DiskError = diskError
