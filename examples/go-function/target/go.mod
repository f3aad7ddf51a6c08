module example.com/gotarget

go 1.19
