/** Threads blocked at a known chain, outer > middle > blocked*; with the argument "hot" the chain is compiled first. */
import java.util.concurrent.locks.LockSupport;

public class Blocked {
    static final Object monitor = new Object();
    static final Object held = new Object();
    static volatile int steps;

    static int blockedInPark(boolean block) {
        while (block) LockSupport.park(monitor);
        return steps++;
    }

    static int blockedInWait(boolean block) throws InterruptedException {
        if (block) synchronized (monitor) { while (true) monitor.wait(); }
        return steps++;
    }

    static int blockedInEnter(boolean block) {
        if (block) synchronized (held) { steps++; }
        return steps++;
    }

    static int middle(int which, boolean block) throws InterruptedException {
        int n = which == 0 ? blockedInPark(block) : which == 1 ? blockedInWait(block) : blockedInEnter(block);
        return n + steps++;
    }

    static int outer(int which, boolean block) throws InterruptedException { return middle(which, block) + steps++; }

    public static void main(String[] args) throws Exception {
        if (args.length > 0) for (int i = 0; i < 60000; i++) outer(i % 3, false);
        String[] names = {"in-park", "in-wait", "in-enter"};
        Thread[] threads = new Thread[3];
        synchronized (held) {
            for (int i = 0; i < 3; i++) {
                int which = i;
                threads[i] = new Thread(() -> { try { outer(which, true); } catch (InterruptedException e) { } }, names[i]);
                threads[i].setDaemon(true);
                threads[i].start();
            }
            for (Thread t : threads)
                while (t.getState() != Thread.State.WAITING && t.getState() != Thread.State.BLOCKED) Thread.sleep(1);
            long pid = ProcessHandle.current().pid();
            System.out.println("{\"ready\":true,\"shape\":\"java\",\"pid\":" + pid + ",\"threads\":[]}");
            System.in.read();
        }
        System.exit(0);
    }
}
